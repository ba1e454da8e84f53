"""The local web page of `simple-diffusion play`."""
