"""Train the embedded model and its feature net from a fixed seed, on a CPU.

    python -m search.embedded.train --work /tmp/embedded            # trains, with checkpoints in --work
    python -m search.embedded.train --work /tmp/embedded --install  # writes the result into this package
    python -m search.embedded.train --work /tmp/other --seed 1 --channels 16  # another model, to transfer strategies to: model.path=/tmp/other/pipeline

Three stages: the feature net (a classifier), the autoencoder, then the text encoder and UNet together. The last one is
the long one: 1.1 to 1.5 s an iteration on two cores, about an hour. It continues from its checkpoint when interrupted.

Choices: a digit of 20 x 20 latents is still recognisable in the noise where SD's schedule ends (beta 0.012), so a model
trained on it learns to ignore the prompt; beta ends at 0.02 here. Velocity is predicted, as in SD v2: the error of the
class weighs as much in the noisiest steps as that of the strokes in the cleanest. 10 % of the prompts are empty, for
classifier-free guidance, and the weights are an exponential moving average.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from search.embedded.digits import IMAGE_SIZE, TEMPLATES, WORDS, load_split
from search.embedded.features import DigitFeatures
from search.embedded.training import all_prompts, draw_prompts, train

PACKAGE = Path(__file__).parent
MAX_TOKENS = 12
BETAS = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction"}
LATENT = IMAGE_SIZE // 2
CHANNELS = 24


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Shift (B, C, H, W) images by up to one pixel each way, filling with black."""
    size = images.shape[-1]
    shifts = torch.randint(-1, 2, (len(images), 2)).tolist()
    padded = F.pad(images, (1, 1, 1, 1))
    return torch.stack([x[:, 1 + dy : 1 + dy + size, 1 + dx : 1 + dx + size] for x, (dy, dx) in zip(padded, shifts, strict=True)])


def train_features(images: torch.Tensor, labels: torch.Tensor, iterations: int) -> DigitFeatures:
    """Train the feature net as a classifier on noisy, shifted digits; noise makes its features see texture."""
    net = DigitFeatures()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        rows = torch.randint(len(images), (128,))
        x = jitter(images[rows])
        x = x + 0.15 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x[:, :1])
        loss = F.cross_entropy(net.logits(x), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def make_autoencoder() -> AutoencoderKL:
    """An AutoencoderKL that halves each side: 40 x 40 RGB to 20 x 20 x 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def train_autoencoder(images: torch.Tensor, iterations: int) -> AutoencoderKL:
    """Train reconstruction with a light KL term, then set the scaling factor that gives unit variance."""
    vae = make_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=iterations)
    for i in range(iterations):
        x = jitter(images[torch.randint(len(images), (32,))]) * 2 - 1
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(restored, x) + F.mse_loss(restored, x) + 1e-4 * posterior.kl().mean() / LATENT**2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if i % 100 == 0:
            print(f"autoencoder {i}/{iterations} loss {loss.item():.4f}", flush=True)
    vae.eval()
    with torch.no_grad():
        scale = 1 / vae.encode(images[:512] * 2 - 1).latent_dist.sample().std().item()
    vae.register_to_config(scaling_factor=round(scale, 5))
    return vae


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE, with a token for each word of the prompts and for each byte.

    The merges are written down, not learned: the library's trainer breaks ties differently in every process.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = sorted({word for template in TEMPLATES for number in WORDS for word in template.format(number).split()})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        joined = pieces[0]
        for piece in pieces[1:]:
            merges.append((joined, piece))
            joined += piece
    merges = list(dict.fromkeys(merges))
    symbols = [start, end, *letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=start, eos_token=end, pad_token=end, unk_token=end, model_max_length=MAX_TOKENS
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder of width 64.

    Its embeddings start larger than CLIP's, which are meant for far longer training: prompts that differ in one word
    must reach the UNet as clearly different, or it learns to ignore them.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=64,
        )
    )
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "token_embedding" in name:
                weight.normal_(std=1.0)
    return encoder


def make_unet(channels: int = CHANNELS) -> UNet2DConditionModel:
    """SD v1.5's block layout (twelve input units); with 24 channels in the first block, a twelfth of its width."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(channels, 2 * channels, 2 * channels, 2 * channels),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def encode_digits(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Latents of the images and of their eight one-pixel shifts: (9, B, 4, 20, 20), scaled to unit variance."""
    padded = F.pad(images, (1, 1, 1, 1)) * 2 - 1
    size = images.shape[-1]
    with torch.no_grad():
        return torch.stack(
            [
                vae.encode(padded[:, :, dy : dy + size, dx : dx + size]).latent_dist.mode() * vae.config.scaling_factor
                for dy in range(3)
                for dx in range(3)
            ]
        )


def train_diffusion(
    latents: torch.Tensor, labels: torch.Tensor, tokenizer: CLIPTokenizer, work: Path, iterations: int, batch: int, channels: int
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train text encoder and UNet together; returns their moving averages. Continues from a checkpoint in `work`."""
    text, unet = make_text_encoder(tokenizer), make_unet(channels)
    # On x86 float32 with channels_last is the fastest: 0.99 s an iteration against 1.20 s contiguous, 1.4 s bf16.
    modules = torch.nn.ModuleDict({"text": text, "unet": unet.to(memory_format=torch.channels_last)})
    alphas = DDPMScheduler(**BETAS).alphas_cumprod
    tokens = tokenizer(all_prompts(), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids

    def loss() -> torch.Tensor:
        rows = torch.randint(latents.shape[1], (batch,))
        x0 = latents[torch.randint(len(latents), (batch,)), rows]
        # Stratified timesteps: one per equal slice of the schedule, which halves the variance of the loss.
        t = ((torch.rand(batch) + torch.randperm(batch)) / batch * 1000).long()
        noise = torch.randn_like(x0)
        a = alphas[t].view(-1, 1, 1, 1)
        choice = draw_prompts(labels[rows])
        predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, text(tokens)[0][choice]).sample
        velocity = a.sqrt() * noise - (1 - a).sqrt() * x0  # arXiv 2202.00512, Appendix D
        return (predicted - velocity).square().mean()

    train(modules, loss, work / "diffusion.pt", iterations, peak=1.5e-3, memory=0.997)
    return text, unet


def install(work: Path) -> None:
    """Write the pipeline folder and the feature net of `work` into this package."""
    shutil.rmtree(PACKAGE / "pipeline", ignore_errors=True)
    shutil.copytree(work / "pipeline", PACKAGE / "pipeline")
    shutil.copy(work / "features.safetensors", PACKAGE / "features.safetensors")


def main() -> None:
    """Run the stages that `--work` does not hold yet, then save the pipeline there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--iterations", type=int, default=2400, help="UNet training iterations")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=CHANNELS, help="of the UNet's first block, a multiple of 8; the others have twice as many")
    parser.add_argument("--install", action="store_true", help="copy the result into the package afterwards")
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    images, labels = load_split(reference=False)

    torch.manual_seed(args.seed)
    if not (work / "features.safetensors").exists():
        net = train_features(images, labels, 1000)
        held_out, truth = load_split(reference=True)
        with torch.no_grad():
            print(f"feature net accuracy on the held-out digits: {(net.logits(held_out).argmax(1) == truth).float().mean():.4f}")
        save_file(net.state_dict(), work / "features.safetensors")

    torch.manual_seed(args.seed + 1)
    if not (work / "vae").exists():
        train_autoencoder(images, 1500).save_pretrained(work / "vae")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    held_out, _ = load_split(reference=True)
    with torch.no_grad():
        restored = vae(held_out * 2 - 1).sample
        print(f"autoencoder error on the held-out digits: {(restored - (held_out * 2 - 1)).abs().mean() / 2:.4f} of full scale")

    torch.manual_seed(args.seed + 2)
    tokenizer = make_tokenizer()
    text, unet = train_diffusion(encode_digits(vae, images), labels, tokenizer, work, args.iterations, args.batch, args.channels)
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(work / "pipeline")
    if args.install:
        install(work)


if __name__ == "__main__":
    main()
