"""The native forward: C++ sources, how they are built, and the functions that they export."""
