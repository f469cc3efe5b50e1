"""Inside the hospital. Patient-level nouns exist only here, so that no other package can even name them."""
