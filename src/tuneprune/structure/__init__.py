"""The data that everything else is about: a model's architecture, what may be removed from it, and a plan of removals.

Of the libraries it imports torch, jaxtyping and safetensors alone: nothing here depends on how a model is loaded.
"""
