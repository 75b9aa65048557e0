"""A model as planning sees it, from its header: hyperparameters, architecture, layers and tensor groups."""
