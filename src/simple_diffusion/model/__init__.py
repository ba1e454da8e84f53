"""A configured model: configuration, construction, model files. Imports nothing heavy."""
