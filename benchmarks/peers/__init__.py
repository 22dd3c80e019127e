"""Programs that run in the environments of the tools this project is compared with."""
