"""The table of CIFAR-10: measured, recorded, held against the papers' claims, and written down."""
