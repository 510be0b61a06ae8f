"""The pages: templates, the scripts and styles beside them, and how values are written in them."""

from hpsearch_api.pages.render import part, render

__all__ = ["part", "render"]
