//! A running emulator: [`console`] starts it and reads its console, [`qmp`] is its monitor, [`run`] runs it to an end mark,
//! [`cpio`] writes the initramfs that it boots.

pub(crate) mod console;
pub(crate) mod cpio;
pub(crate) mod qmp;
pub(crate) mod run;
