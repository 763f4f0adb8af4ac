"""The C kernels without Python: a driver that checks them (`check.c`), built for sanitizers and other processors."""
