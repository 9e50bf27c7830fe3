"""What `robustviz compare` runs: every defense as published and under the worst case of adaptive attacks."""
