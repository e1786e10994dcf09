"""numerics=invariant: the same bits for a row in any batch, by shapes that stock kernels compute in one order."""
