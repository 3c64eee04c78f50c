"""Base model plus adapter becomes one plain transformers folder. The door is `stage.merge`."""
