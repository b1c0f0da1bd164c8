"""Only sums leave the device (AFL, He et al. 2025, 2405.16240): one message a device, and an exact solution."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO, getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from mobillm_flower.config import Settings
from mobillm_flower.config.run_compatibility import check_difference_strategy
from mobillm_flower.errors import CacheError, PacketRejected
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import note_round
from mobillm_flower.server.sums import check_sums, hold, num_noised_totals, require_room
from mobillm_flower.strategies.device_state import DeviceState
from mobillm_flower.strategies.held_out import measure_held_out
from mobillm_flower.strategies.intake import Intake
from mobillm_flower.strategies.preparation import log_prepared
from mobillm_flower.strategies.registry import STRATEGIES
from mobillm_flower.strategies.run_state import RunState
from mobillm_flower.strategies.secure_groups import are_secure, collect, grouped, sums_request
from mobillm_flower.strategies.side_tuning import SideTuningStrategy
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import DeviceDescription
from mobillm_flower.wire.sums import SumsRequest, open_sums, pack_sums_request

logger = getLogger("flwr")


class SumsIntake(Intake):
    """Asks devices for their sums and commits them: one row of the cache is one device."""

    asks = keys.SUM

    def request(self, run: RunState, device: DeviceState, round_: int) -> RecordDict:
        """Return what a device is asked for: its sums."""
        return pack_sums_request(self._asked(run, device))

    def _asked(self, run: RunState, device: DeviceState) -> SumsRequest:
        description = device.description
        return sums_request(run, description.backbone.fingerprint, run.cache.held(description.pseudonym))

    def commit(self, run: RunState, device: DeviceState, content: RecordDict, round_: int) -> int:
        """Open, check and commit a device's sums; returns the number of its samples, 0 where there is no room."""
        request = self._asked(run, device)
        sums = open_sums(content, request=request)
        if sums.pseudonym != device.description.pseudonym:
            raise PacketRejected("pseudonym", "the packet names another device than the node it came from")
        most = run.fleet.most_in_sums()[device.node_id]
        samples = check_sums(sums.words, request.sums, most=most) or most
        if request.held:
            raise PacketRejected("releases", "sums of this device are held already")
        try:
            require_room(run.cache, run.plan.sums, samples)
        except CacheError as error:  # which is not the device's fault
            run.fleet.drop(device, str(error))
            return 0
        hold(
            run.cache,
            sums.words,
            pseudonym=sums.pseudonym,
            release=sums.release,
            samples=samples,
            backbone=device.description.backbone.fingerprint,
            round_=round_,
        )
        run.stopping.count_upload(sums.num_bytes)
        run.folder.append(device.take_sums([sums], samples=samples, round_=round_))
        return samples


@STRATEGIES.register("analytic")
class AnalyticMobiLLM(SideTuningStrategy):
    """Each device adds its samples up and sends the sums once; the side network is the solution of their total.

    It is the solution that the same vectors have in one place, bit by bit, however they are divided among devices and
    in whatever order they come. The server holds sums, and no sample. Where `privacy.central-epsilon` is set, it adds
    noise to the total before anything is made of it.

    Parameters
    ----------
    settings, run_path
        As of `SideTuningStrategy`.
    """

    preset = "analytic"
    takes = SumsIntake
    _totals = 0

    def check(self, settings: Settings) -> None:
        """Need objective `difference`; the other needs are the settings' own."""
        check_difference_strategy(settings)

    def is_done(self, cache: ActivationCache, device: DeviceDescription) -> bool:
        """Whether a device's sums are held, or it has nothing to add up."""
        return bool(not device.num_train or cache.held(device.pseudonym) or device.pseudonym in grouped(cache))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a request for each device whose sums are not held, but for those that have far too many samples."""
        self.fleet.drop_too_large()
        return super().configure_train(server_round, arrays, config, grid)

    def evaluate(self, grid: Grid, round_: int) -> None:
        """Ask for the metric on what the sums left out, too, once there is a solution."""
        if (totals := num_noised_totals(self.run.cache)) > max(1, self._totals):
            log_prepared(self.run, delta=self.settings.privacy.delta)  # a total of more devices has noise of its own
        self._totals = totals
        if self.settings.trainer.validation_share and self.run.trainer.position.fitted_rows:
            measure_held_out(self.run, self.settings, round_=round_)
        super().evaluate(grid, round_)

    def ingest(self, grid: Grid, num_rounds: int, config: ConfigRecord) -> int:
        """Ask for the sums, each device's own or those of groups; returns the last round's number."""
        run, private = self.run, self.settings.privacy
        secure = are_secure(run, private)
        logger.log(INFO, "secure sums: %s", "yes" if secure else "no, the server gets each device's own sums")
        if not secure:
            return super().ingest(grid, num_rounds, config)
        round_ = run.catch_up() + 1
        collect(run, private, config, round_=round_)
        note_round(run.cache, round_)
        return round_
