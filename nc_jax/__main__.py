"""`python -m nc_jax` is the command line `nc-jax`."""

from nc_jax.commands import main

main()
