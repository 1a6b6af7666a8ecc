"""The only room that imports PyTorch: bngen's programs evaluated by PyTorch's own operators."""
