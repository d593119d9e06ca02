"""Pictures into arrays: decoding and cropping on the host, everything of a fixed shape on the device."""
