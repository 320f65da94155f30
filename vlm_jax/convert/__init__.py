"""Two-way tables between our parameter paths and the weight files of the PyTorch world."""
