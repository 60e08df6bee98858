"""Templates that start Ray where a search is to run: `ray up`, KubeRay and SLURM. Copy one and fill in what is marked."""
