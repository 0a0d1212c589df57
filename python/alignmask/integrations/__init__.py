"""Our kernels in models of other libraries."""
