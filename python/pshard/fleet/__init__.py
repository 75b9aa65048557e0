"""What mapping, sharding and rebalancing share: bytes and seconds of layers on each device, and the solver."""
