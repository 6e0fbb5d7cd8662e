"""Generated from the contracts in protos/; `make proto` writes it anew."""
