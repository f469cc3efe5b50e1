"""A ward of simulated devices that tries the whole way in, with kills: `fedtwin client demo`."""
