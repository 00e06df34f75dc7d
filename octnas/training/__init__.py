"""Training loops, data and scoring; torch, torchvision and timm only."""
