"""The ways to run a program, one file each; `registry` lists them."""
