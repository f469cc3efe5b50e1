"""The hospital's own store of observations: encrypted at rest, one key a patient, erased by destroying that key."""
