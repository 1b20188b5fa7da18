"""From a prompt to text: prefill, decode, stop."""
