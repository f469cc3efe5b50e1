"""What devices, wearables and the record system send, until it is observations: parsers, devices, gateway."""
