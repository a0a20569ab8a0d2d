"""Operations: each with its PyTorch reference, which is the oracle of its fast path."""
