"""Aggregation that some hostile sites cannot steer: clipping at a site binds that site only if it is honest."""
