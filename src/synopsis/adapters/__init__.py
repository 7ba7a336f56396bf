"""Synopsis in the interfaces of other libraries; every adapter is a leaf that needs its extra."""
