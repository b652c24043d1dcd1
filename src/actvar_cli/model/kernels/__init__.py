"""What an NVIDIA GPU does in one pass that torch does in many: Triton kernels, each beside the torch code it replaces.

They need no gradient and a GPU. With ``TRITON_INTERPRET=1`` Triton runs them on a CPU, slowly: that is how they are
tested.
"""
