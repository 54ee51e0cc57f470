//! raw: the disk's bytes as they are, in a file or a block device.
