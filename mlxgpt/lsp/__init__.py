"""Completion in editors: the Language Server Protocol, 3.18, over stdin and stdout."""
