"""MLX: folders for mlx-lm."""
