"""Measurements: the plain PyTorch that fastvae is compared with, and how times are taken."""
