"""The kinds of faults: functions that inject one and judge what became of it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tests.faults.case import Case
from tests.faults.judge import Outcome
from tests.faults.kinds import damage, data, disk, ends

KINDS: Mapping[str, Callable[[Case], Outcome]] = MappingProxyType(
    {
        "kill": ends.kill,
        "kill_with_workers": ends.kill_with_workers,
        "kill_in_starting": ends.kill_in_starting,
        "kill_in_saving": ends.kill_in_saving,
        "kill_during_save": ends.kill_during_save,
        "kill_at_a_byte": ends.kill_at_a_byte,
        "kill_twice": ends.kill_twice,
        "kill_in_resuming": ends.kill_in_resuming,
        "sigterm": ends.sigterm,
        "sigterm_in_starting": ends.sigterm_in_starting,
        "sigint": ends.sigint,
        "sigint_twice": ends.sigint_twice,
        "sigusr1": ends.sigusr1,
        "worker_killed": data.worker_killed,
        "worker_raises": data.worker_raises,
        "image_damaged": data.image_damaged,
        "image_removed": data.image_removed,
        "kill_with_bad_images": data.kill_with_bad_images,
        "nan_stop": data.nan_stop,
        "nan_skip": data.nan_skip,
        "nan_rollback": data.nan_rollback,
        "inf_gradient_stop": data.inf_gradient_stop,
        "spike_rollback": data.spike_rollback,
        "checkpoint_truncated": damage.checkpoint_truncated,
        "bit_in_tensors": damage.bit_in_tensors,
        "bit_in_record": damage.bit_in_record,
        "record_missing": damage.record_missing,
        "two_damaged": damage.two_damaged,
        "all_damaged": damage.all_damaged,
        "copy_beside": damage.copy_beside,
        "backbone_deleted": damage.backbone_deleted,
        "half_a_line": damage.half_a_line,
        "records_emptied": damage.records_emptied,
        "disk_full_a_while": disk.disk_full_a_while,
        "disk_full_to_the_end": disk.disk_full_to_the_end,
        "small_disk_full": disk.small_disk_full,
        "disk_ill": disk.disk_ill,
        "read_only": disk.read_only,
        "folder_removed": disk.folder_removed,
        "clock_set": disk.clock_set,
        "two_runs": disk.two_runs,
        "rank_killed": disk.rank_killed,
        "ranks_stopped": disk.ranks_stopped,
        "world_grows": disk.world_grows,
    }
)
"""Every kind by its name; what it does is its docstring."""
