"""Conversations with instruct models: their template, the conversation and its cache, and the prompt it is led at."""
