//! The `m.` operations: the kernel's region functions, called through the door that the module `mm_iommu_door` makes.

use crate::answer::{Answer, Errno};
use crate::names::Malformed;
use crate::op::{sum, word};
use crate::run::Process;
use crate::script::Line;
use crate::sys::{self, Door};

const DOOR: &str = "/dev/mm_iommu_door";

/// `DOOR_ASK`: type `d`, number 1, both directions, the size of the struct.
const ASK: u64 = (6 << 29) | ((size_of::<Door>() as u64) << 16) | ((b'd' as u64) << 8) | 1;

/// What the module finds when there is no region.
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

pub(crate) fn perform(process: &mut Process<'_>, line: &Line<'_>) -> Result<Answer, Malformed> {
    let Some(call) = Call::parse(line.op()) else {
        return Err(Malformed(format!("unknown operation '{}'", line.op())));
    };
    let mut asked = question(process, line, call)?;
    let fd = match process.door {
        Some(fd) => fd,
        None => match sys::open(DOOR) {
            Ok(fd) => *process.door.insert(fd),
            Err(errno) => return Ok(unasked(errno)),
        },
    };
    match sys::ioctl_on(fd, ASK, &mut asked) {
        Ok(_) => Ok(answer(process, line, call, &asked)),
        Err(errno) => Ok(unasked(errno)),
    }
}

/// The answer of a door that did not let the question through, such as one about a dead slot.
fn unasked(errno: Errno) -> Answer {
    Answer::from(Err(errno)).and("ioctl-failed".to_owned())
}

fn question(process: &Process<'_>, line: &Line<'_>, call: Call) -> Result<Door, Malformed> {
    let number = |place| sum(process, line, place);
    let slot = |place| -> Result<i32, Malformed> {
        i32::try_from(number(place)?).map_err(|_| Malformed(format!("no slot {}", line.words[place])))
    };
    let empty = Door { call: call as u32, slot: NONE, ..Door::default() };
    Ok(match call {
        Call::New => Door { slot: slot(1)?, user: number(2)?, amount: number(3)?, ..empty },
        Call::NewDevice => {
            Door { slot: slot(1)?, user: number(2)?, amount: number(3)?, host: number(4)?, ..empty }
        }
        Call::Get | Call::Lookup => Door { user: number(1)?, amount: number(2)?, ..empty },
        Call::Put | Call::MappedInc | Call::MappedDec => Door { slot: slot(1)?, ..empty },
        Call::Translate => {
            word(line, 3)?;
            Door { slot: slot(1)?, user: number(2)?, amount: number(3)?, ..empty }
        }
        Call::IsDevice => Door { host: number(1)?, amount: number(2)?, ..empty },
        Call::Any => empty,
    })
}

fn answer(process: &Process<'_>, line: &Line<'_>, call: Call, said: &Door) -> Answer {
    match call {
        Call::Get | Call::Lookup => Answer::noted(match said.slot {
            NONE => "slot=none".to_owned(),
            slot => format!("slot={slot}"),
        }),
        // Where a page of ordinary memory is differs from run to run; where in the page it points does not.
        Call::Translate if said.result == 0 => Answer::noted(if line.says("exact") {
            format!("hpa=0x{:x}", said.host)
        } else {
            format!("hpa=page+0x{:x}", said.host & (process.names.page() - 1))
        }),
        Call::IsDevice => {
            Answer::noted(format!("devmem={}", said.result)).and(format!("size=0x{:x}", said.host))
        }
        Call::Any => Answer::noted(format!("preregistered={}", said.result)),
        _ => Answer::from(said.result),
    }
}
