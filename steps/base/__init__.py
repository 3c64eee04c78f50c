"""The base model: fetched or converted once, checked by digest, then used offline by every other room."""
