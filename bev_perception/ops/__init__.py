"""Operations, each with a plain PyTorch reference that its fast implementation is tested against."""
