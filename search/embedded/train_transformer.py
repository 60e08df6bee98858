"""Train the second embedded model, a diffusion transformer for the same digits, from a fixed seed, on a CPU.

    python -m search.embedded.train_transformer --work /tmp/transformer            # trains, with checkpoints in --work
    python -m search.embedded.train_transformer --work /tmp/transformer --install  # writes the result into this package

It is Stable Diffusion 3's pipeline with twelve joint blocks, a twenty-fourth of its width, two small CLIP text encoders and no T5. Autoencoder,
tokenizer and digits are the first model's (`search.embedded.train`). It continues from its checkpoint when interrupted.

Choices: rectified flow with uniform noise levels, one in each equal slice for a batch. The modulation of every block starts at zero, as DiT's
does (arXiv 2212.09748, Section 3.2), so that a block begins as the identity. 10 % of the prompts are empty, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from search.embedded.digits import load_split
from search.embedded.train import LATENT, MAX_TOKENS, PACKAGE, encode_digits, make_tokenizer
from search.embedded.training import all_prompts, draw_prompts, train

BLOCKS, HEADS, HEAD_WIDTH, TEXT_WIDTH = 12, 2, 32, 64


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A two-layer CLIP text encoder; its embeddings start larger than CLIP's, which are meant for far longer training."""
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )
    with torch.no_grad():
        encoder.text_model.embeddings.token_embedding.weight.normal_(std=1.0)
    return encoder


def make_transformer() -> SD3Transformer2DModel:
    """Stable Diffusion 3.5's joint blocks, of two heads each, on 10 x 10 image tokens."""
    width = HEADS * HEAD_WIDTH
    model = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (".norm1" in name and ".linear." in name) or name.startswith(("norm_out.linear", "proj_out")):
                weight.zero_()
    return model


def encode_prompts(encoders: torch.nn.ModuleList, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, 2 L, C) states and (T, C) pooled ones of (T, L) prompts, as StableDiffusion3Pipeline makes them without a T5: its half is zeros."""
    found = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([f.hidden_states[-2] for f in found], dim=-1)
    return torch.cat([states, torch.zeros_like(states)], dim=1), torch.cat([f.text_embeds for f in found], dim=-1)


def train_flow(
    latents: torch.Tensor, labels: torch.Tensor, tokenizer: CLIPTokenizer, work: Path, iterations: int, batch: int
) -> tuple[torch.nn.ModuleList, SD3Transformer2DModel]:
    """Train text encoders and transformer together; returns their moving averages. Continues from a checkpoint in `work`."""
    encoders, model = torch.nn.ModuleList([make_text_encoder(tokenizer) for _ in range(2)]), make_transformer()
    modules = torch.nn.ModuleDict({"text": encoders, "transformer": model})
    tokens = tokenizer(all_prompts(), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids

    def loss() -> torch.Tensor:
        rows = torch.randint(latents.shape[1], (batch,))
        x0 = latents[torch.randint(len(latents), (batch,)), rows]
        sigma = (torch.rand(batch) + torch.randperm(batch)) / batch
        noise = torch.randn_like(x0)
        noisy = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        choice = draw_prompts(labels[rows])
        states, pooled = encode_prompts(encoders, tokens)
        predicted = model(noisy, states[choice], pooled[choice], 1000 * sigma).sample
        return (predicted - (noise - x0)).square().mean()

    train(modules, loss, work / "flow.pt", iterations, peak=1e-3, memory=0.998)
    return encoders, model


def make_pipeline(vae: AutoencoderKL, encoders: torch.nn.ModuleList, tokenizer: CLIPTokenizer, model: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """The pipeline of the trained parts."""
    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        transformer=model,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def main() -> None:
    """Train, or go on, then save the pipeline in `--work`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--iterations", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="copy the result into the package afterwards")
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    images, labels = load_split(reference=False)
    torch.manual_seed(args.seed + 2)
    vae = AutoencoderKL.from_pretrained(PACKAGE / "pipeline" / "vae").eval()
    tokenizer = make_tokenizer()
    encoders, model = train_flow(encode_digits(vae, images), labels, tokenizer, work, args.iterations, args.batch)
    pipe = make_pipeline(vae, encoders, tokenizer, model)
    pipe.to(dtype=torch.float16).save_pretrained(work / "pipeline")  # half precision halves the files; it is loaded in float32
    if args.install:
        target = PACKAGE / "transformer"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "pipeline", target)


if __name__ == "__main__":
    main()
