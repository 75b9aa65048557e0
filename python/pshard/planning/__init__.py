"""A plan for one GPU and its host: what goes where per token tier, how fast it will be, and the document of it."""
