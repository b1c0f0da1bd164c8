"""Names of records and of keys in them: one place, kebab-case."""

from typing import Final

SCHEMA_VERSION: Final = 1
"""Version of the packet's layout; a packet of another version is refused by name."""

# message types
EXTRACT: Final = "train.extract"
SUM: Final = "train.sum"
SECURE_SUM: Final = "train.secure_sum"
EVALUATE: Final = "evaluate"
HELD_OUT_TALLY: Final = "evaluate.held_out"
DESCRIBE: Final = "query.describe"

# records
REQUEST: Final = "request"
HEADER: Final = "header"
ACTIVATIONS: Final = "activations"
TARGETS: Final = "targets"
METRICS: Final = "metrics"
DEVICE: Final = "device"
PROOF: Final = "proof"
SIDE_NETWORK: Final = "side-network"

# keys of requests and headers
VERSION: Final = "schema-version"
CONTRACT: Final = "contract"
SPEC: Final = "extraction"
ROUND: Final = "round"
WINDOW: Final = "window"
MAX_BYTES: Final = "max-bytes"
HELD: Final = "held"
HELD_OUT: Final = "held-out"
PSEUDONYM: Final = "pseudonym"
DATA_FINGERPRINT: Final = "data-fingerprint"
RELEASES: Final = "releases"
PAYLOAD_HASH: Final = "payload-hash"
TOTAL: Final = "total"
REMAINING: Final = "remaining"
REFUSED: Final = "refused"
REASON: Final = "reason"
BACKBONE: Final = "backbone"
SIDE_CONFIG: Final = "side-config"
PREDICTION: Final = "prediction"
COLUMNS: Final = "columns"
CODEC: Final = "codec"

# a description is signed
NONCE: Final = "nonce"
PUBLIC_KEY: Final = "public-key"
SIGNATURE: Final = "signature"

# arrays
PAYLOAD: Final = "payload"
LENGTHS: Final = "lengths"
TOKENS: Final = "tokens"

# metrics
NUM_EXAMPLES: Final = "num-examples"
FORWARD_SECONDS: Final = "forward-seconds"
PEAK_MEMORY: Final = "peak-memory-bytes"
PAYLOAD_BYTES: Final = "payload-bytes"
NUM_TRAIN: Final = "num-train"
NUM_TEST: Final = "num-test"
TASK_UNKNOWN: Final = "accuracy-task-unknown"
CHOSEN: Final = "chosen"
LEFT_OUT: Final = "left-out"

# baselines: Flower's own strategies name their records so
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
SERVER_ROUND: Final = "server-round"
FLOPS: Final = "flops"
SECONDS: Final = "seconds"
SAMPLES: Final = "samples"
LOSS: Final = "loss"
SUMS: Final = "sums"
SECURE_SUMS: Final = "secure-sums"
SEEDS: Final = "seeds"
GRADIENTS: Final = "gradients"
ROWS: Final = "rows"
WEIGHTS: Final = "weights"
HIDDEN: Final = "hidden-states"
LABELS: Final = "labels"
NORMS: Final = "norms"
STEP: Final = "step"
SEED: Final = "seed"
SERVER_SECONDS: Final = "server-seconds"
