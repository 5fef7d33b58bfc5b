"""Hand-written Triton kernels behind some ``fast`` implementations, each with a PyTorch twin of the same function.

``<name>_kernels.py`` holds what runs on the GPU, and imports Triton; the modules that start it import that only when
they do, after :mod:`infsa_models.kernels.support` has said that it can run. Tiles are chosen by
:mod:`infsa_models.kernels.tune` and looked up in :mod:`infsa_models.kernels.tiles`.

On a CPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before anything imports Triton), which proves
indices and algebra, in float32 and float16; its products of bfloat16 are wrong.
"""
