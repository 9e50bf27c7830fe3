"""What can be done to any network: find its places, change them, copy it folded."""
