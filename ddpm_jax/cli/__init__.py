"""The commands. Only this folder sees flags and ConfigDict; it turns a config into the parts below and runs them."""
