//! The `m.` operations: the kernel's region functions, called through the device of the module `mm_iommu_test`.

use prereg_scenario::names::Malformed;
use prereg_scenario::script::{self, Line};
use prereg_scenario::transcript::{Answer, Errno};

use crate::process::{Process, word};
use crate::sys::{self, RegionCall};

const DEVICE: &str = "/dev/mm_iommu_test";

/// `MM_IOMMU_CALL`: type `d`, number 1, both directions, the size of the struct.
const CALL_REQUEST: u64 = (6 << 29) | ((size_of::<RegionCall>() as u64) << 16) | ((b'd' as u64) << 8) | 1;

/// The module's slot for no region.
const NONE: i32 = -1;

/// The module's functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Call {
    New = 1,
    NewDevice,
    Get,
    Put,
    Lookup,
    Translate,
    IsDevice,
    MappedInc,
    MappedDec,
    Any,
}

impl Call {
    fn parse(op: &str) -> Option<Self> {
        Some(match op {
            "m.new" => Self::New,
            "m.newdev" => Self::NewDevice,
            "m.get" => Self::Get,
            "m.put" => Self::Put,
            "m.lookup" => Self::Lookup,
            "m.ua_to_hpa" => Self::Translate,
            "m.is_devmem" => Self::IsDevice,
            "m.inc" => Self::MappedInc,
            "m.dec" => Self::MappedDec,
            "m.preregistered" => Self::Any,
            _ => return None,
        })
    }
}

pub(crate) fn perform(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let Some(call) = Call::parse(line.op()) else {
        return Err(Malformed(format!("unknown operation '{}'", line.op())));
    };
    let mut asked = question(process, line, call)?;
    let fd = match process.region_calls {
        Some(fd) => fd,
        None => match sys::open(DEVICE) {
            Ok(fd) => *process.region_calls.insert(fd),
            Err(errno) => return Ok(unasked(errno)),
        },
    };
    match sys::ioctl_on(fd, CALL_REQUEST, &mut asked) {
        Ok(_) => Ok(answer(process, line, call, &asked)),
        Err(errno) => Ok(unasked(errno)),
    }
}

/// The answer to a call that the module refused, for example one with a dead slot.
fn unasked(errno: Errno) -> Answer {
    Answer::from(errno).with("ioctl-failed")
}

fn question(process: &Process<'_>, line: &Line, call: Call) -> Result<RegionCall, Malformed> {
    let number = |index| process.sum(line, index);
    let slot = |place| -> Result<i32, Malformed> {
        i32::try_from(number(place)?).map_err(|_| Malformed(format!("no slot {}", line.words[place])))
    };
    let empty = RegionCall { call: call as u32, slot: NONE, ..RegionCall::default() };
    Ok(match call {
        Call::New => RegionCall { slot: slot(1)?, user: number(2)?, amount: number(3)?, ..empty },
        Call::NewDevice => {
            RegionCall { slot: slot(1)?, user: number(2)?, amount: number(3)?, host: number(4)?, ..empty }
        }
        Call::Get | Call::Lookup => RegionCall { user: number(1)?, amount: number(2)?, ..empty },
        Call::Put | Call::MappedInc | Call::MappedDec => RegionCall { slot: slot(1)?, ..empty },
        Call::Translate => {
            word(line, 3)?;
            RegionCall { slot: slot(1)?, user: number(2)?, amount: number(3)?, ..empty }
        }
        Call::IsDevice => RegionCall { host: number(1)?, amount: number(2)?, ..empty },
        Call::Any => empty,
    })
}

fn answer(process: &Process<'_>, line: &Line, call: Call, said: &RegionCall) -> Answer {
    match call {
        Call::Get | Call::Lookup => Answer::done().with(match said.slot {
            NONE => "slot=none".to_owned(),
            slot => format!("slot={slot}"),
        }),
        // The page of ordinary memory differs between runs; the offset in the page does not.
        Call::Translate if said.result == 0 => Answer::done().with(if script::flag(&line.words, "exact") {
            format!("hpa=0x{:x}", said.host)
        } else {
            format!("hpa=page+0x{:x}", said.host & (process.names.page() - 1))
        }),
        Call::IsDevice => {
            Answer::done().with(format!("devmem={}", said.result)).with(format!("size=0x{:x}", said.host))
        }
        Call::Any => Answer::done().with(format!("preregistered={}", said.result)),
        _ => Answer::from(said.result),
    }
}
