"""How a build is done: everything that is neither the model, the task nor the device.

Every field's description is the reference for ``--set``.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sieve_edge.config import Fraction, PositiveFloat, PositiveInt, Probability, Strict


class LearnRecipe(Strict):
    """How projections are found."""

    method: Literal["closed_form", "gradient", "weight_svd", "input_pca"] = Field(
        "closed_form",
        description="closed_form is optimal, gradient the paper's; weight_svd (LASER), input_pca (SliceGPT) compare.",
    )
    output_metric: Literal["fisher", "identity"] = Field(
        "fisher", description="Metric of the output error: Fisher information of the answer, or plain least squares."
    )
    fisher_prompts: PositiveInt = Field(
        256,
        description="Prompts with one backward pass each for the Fisher metric; what a prefix that all share adds is "
        "taken from an eighth of them.",
    )
    fisher_damping: Annotated[float, Field(gt=0.0)] = Field(
        0.3, description="Identity added to the Fisher matrix, as a fraction of its mean eigenvalue."
    )
    gradient_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.9,
        description="With the Fisher metric: share of the Gram matrix in which a token weighs as much as the gradient "
        "at its output; 0 weighs all tokens alike.",
    )
    relative_cut: Annotated[float, Field(gt=0.0, lt=1e-3)] = Field(
        1e-12, description="Eigenvalues of a Gram matrix below this fraction of the largest count as zero."
    )
    gradient_steps: PositiveInt = Field(300, description="Steps of Adam for one (matrix, rank) of the gradient method.")


class GeneticRecipe(Strict):
    """The paper's genetic algorithm, its constants as defaults (LLM-Sieve, section 4.2.2)."""

    population: Annotated[int, Field(ge=2)] = Field(100, description="Chromosomes in a generation, a count.")
    crossover_probability: Probability = Field(0.5, description="With which two parents swap their right parts.")
    mutation_probability: Probability = Field(0.002, description="With which a gene moves one step of the grid.")
    kappa: PositiveFloat = Field(50.0, description="Steepness of the punishment below the accuracy needed, eq. (7).")
    patience: PositiveInt = Field(10, description="Generations over which the best fitness is looked at.")
    patience_change: PositiveFloat = Field(
        0.05, description="Stop when the best fitness rose by less than this fraction over these generations."
    )
    max_tokens: PositiveInt | None = Field(None, description="Stop when this many tokens were forwarded.")


class GuidedRecipe(Strict):
    """The guided search: knapsack plans of falling size, few of them scored."""

    ladder_step: Annotated[float, Field(gt=0.0, le=0.25)] = Field(
        0.05, description="Fraction of the linears between two sizes that are tried."
    )
    probes: Annotated[int, Field(ge=0)] = Field(
        2, description="Matrices of each kind whose KL divergence is measured to check the damage table."
    )
    divergence_prompts: PositiveInt = Field(32, description="Prompts of a KL divergence, from the calibration split.")
    swap_rounds: Annotated[int, Field(ge=0)] = Field(1, description="Rounds of swaps for a plan of the last rung.")
    offspring: PositiveInt = Field(8, description="Swaps whose KL divergence is measured in a round.")
    last_rungs: PositiveInt = Field(
        3, description="Sizes scored on the last rung; more only while none of them is feasible."
    )
    refit_jump: PositiveInt = Field(
        2, description="Steps of the ladder that refit is expected to gain: the first size that is scored after refit."
    )


class SearchRecipe(Strict):
    """How the pruning plan is found."""

    strategy: Literal["guided", "genetic", "uniform"] = Field(
        "guided",
        description="guided: knapsack plans, refitted; genetic: the paper's; uniform: bisection on one factor for all.",
    )
    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="Relative loss that a plan may have before tuning wins some of it back; left out, the recipe's "
        "tolerance, which the artifact is held to in either case.",
    )
    resolution: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="How closely the uniform strategy finds its factor, between two levels of the grid."
    )
    batch_tokens: PositiveInt = Field(
        1024, description="Tokens scored in one batch; fixed, so that scores do not depend on the machine."
    )
    part: PositiveInt = Field(200, description="Selection examples after which a hopeless candidate is given up.")
    accept: Literal["interval", "point"] = Field(
        "interval",
        description="A plan is accepted by the upper end of the paired interval of its loss, or by the loss itself.",
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] | None = Field(
        None,
        description="One-sided confidence of that interval; left out, 0.8, and 0.95 for storage width, whose plans "
        "lost more on fresh examples than on those they were chosen by.",
    )
    stop_confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        0.95, description="Confidence with which a candidate must lose too much to be given up early."
    )
    refit: bool = Field(
        True, description="Restore the outputs from the pruned model's inputs; the last rung is scored after it."
    )
    refit_prompts: Annotated[int, Field(ge=10)] = Field(
        200, description="Prompts that refit runs over, from the calibration split; a fifth is held out."
    )
    allow_skip: bool = Field(
        False,
        description="Whether guided and genetic may leave out whole attention and MLP blocks; the target's format must "
        "hold that.",
    )
    front: bool = Field(
        False, description="Keep the plans that no other one beats in size and accuracy; --plan N fuses one."
    )
    max_params: PositiveInt | None = Field(None, description="Most parameters of the model, embeddings included.")
    max_size_mib: PositiveFloat | None = Field(None, description="Largest size of the weights, in MiB.")
    max_time_per_answer_ms: PositiveFloat | None = Field(
        None, description="Largest time for one answer, in ms, by the target's time table."
    )
    max_time_per_token_ms: PositiveFloat | None = Field(
        None, description="Largest time for one decode step, in ms, by the target's time table."
    )
    genetic: GeneticRecipe = Field(default_factory=GeneticRecipe, description="Constants of the genetic strategy.")
    guided: GuidedRecipe = Field(default_factory=GuidedRecipe, description="Sizes of the guided strategy.")

    @property
    def limits_time(self) -> bool:
        """Whether a time is limited, so that a time table is needed."""
        return self.max_time_per_answer_ms is not None or self.max_time_per_token_ms is not None


class TuneRecipe(Strict):
    """Training after pruning; it changes no rank."""

    method: Literal["none", "lora", "full_factors"] = Field(
        "none", description="lora: adapters on every linear, merged at the end; full_factors: the weights themselves."
    )
    loss: Literal["answer", "distil"] = Field(
        "answer", description="Cross-entropy of the right answers, or KL divergence from the dense model's answers."
    )
    rank: PositiveInt = Field(8, description="Rank of an adapter.")
    learning_rate: PositiveFloat = Field(2e-4, description="Highest learning rate of AdamW; full_factors needs less.")
    epochs: PositiveFloat = Field(1.0, description="Passes over the calibration and tuning splits.")
    batch_examples: PositiveInt = Field(16, description="Examples of a step, at least.")
    batch_tokens: PositiveInt = Field(1024, description="Tokens that are run at a time, a shared prefix left out.")
    evaluate_every: PositiveInt = Field(24, description="Steps between two looks at the selection split.")
    patience: PositiveInt = Field(4, description="Looks without improvement after which training stops.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "auto",
        description="Arithmetic of the passes (autocast); auto: bfloat16 where the processor has avx512_bf16 or "
        "amx_bf16, or bf16 of Arm, or the GPU has it, else float32, so that the result depends on the machine, and "
        "says which it was.",
    )
    keep: Literal["auto", "always"] = Field(
        "auto",
        description="auto keeps the untuned factors where tuned ones lose more than the tolerance on the transfer set, "
        "or lose on the selection split.",
    )
    compare_dense: bool = Field(True, description="Whether the dense model is tuned in the same way, to compare with.")


class VocabularyRecipe(Strict):
    """Which tokens are kept."""

    keep: Literal["all", "auto"] = Field(
        "all",
        description="auto: those of calibration, tuning and selection texts and answers, all bytes and special tokens.",
    )
    texts_file: str | None = Field(None, description="File of further texts, UTF-8, whose tokens are kept too.")
    first_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="How many tokens with the lowest ids are kept too; in BPE these are the most common ones."
    )


class QuantizeRecipe(Strict):
    """How weights get smaller numbers, where the target asks for them."""

    method: Literal["gptq", "nearest"] = Field(
        "gptq",
        description="Rounding of int8 and int4 weights: each makes up for the errors before it, or to the nearest.",
    )
    prompts: PositiveInt = Field(128, description="Calibration prompts that show how much the inputs matter.")
    allow_fallback: bool = Field(
        False, description="Whether a weight that does not fit the target's quantization may take another type."
    )


class Recipe(Strict):
    """Everything that is not the model, the task or the target."""

    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.05, description="Allowed relative loss of the task's score; the paper uses 0.01 to 0.05."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the splits and of every random choice.")
    threads: PositiveInt = Field(
        2, description="Torch threads of every stage but validate; recorded, since sums depend on it."
    )
    device: str = Field(
        "cpu",
        description="Torch device of every stage but export and validate, e.g. cuda; of several, e.g. cuda:0,cuda:1, "
        "calibrate and learn use all and the others the first.",
    )
    calibration_tokens: Annotated[int, Field(ge=1)] = Field(
        20_000,
        description="Tokens of prompts and answers that the statistics are gathered over; the paper uses 200000.",
    )
    grid: tuple[Fraction, ...] = Field(
        (1.0, 0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.2, 0.1, 0.05),
        description="Pruning factors that the search may choose from (LLM-Sieve, section 4.2.2).",
    )
    learn: LearnRecipe = Field(default_factory=LearnRecipe, description="How projections are found.")
    search: SearchRecipe = Field(default_factory=SearchRecipe, description="How the plan is found.")
    tune: TuneRecipe = Field(default_factory=TuneRecipe, description="Training after pruning.")
    vocabulary: VocabularyRecipe = Field(default_factory=VocabularyRecipe, description="Which tokens are kept.")
    quantize: QuantizeRecipe = Field(default_factory=QuantizeRecipe, description="How weights get smaller numbers.")

    @property
    def search_tolerance(self) -> float:
        """Relative loss that a plan may have before tuning."""
        return self.tolerance if self.search.tolerance is None else self.search.tolerance

    @property
    def devices(self) -> tuple[str, ...]:
        """Torch devices that calibrate deals batches out to, and learn matrices."""
        return tuple(self.device.split(","))

    @property
    def main_device(self) -> str:
        """Torch device of every other stage."""
        return self.devices[0]

    @field_validator("device")
    @classmethod
    def _names(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            raise ValueError("must be names of torch devices, with commas between them")
        return ",".join(names)

    @field_validator("grid")
    @classmethod
    def _falling_from_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2 or value[0] != 1.0 or list(value) != sorted(set(value), reverse=True):
            raise ValueError("must start at 1.0 and fall strictly")
        return value

    @model_validator(mode="after")
    def _nothing_lost_for_good(self) -> "Recipe":
        if self.search_tolerance > self.tolerance and self.tune.method == "none":
            raise ValueError(
                f"search.tolerance: {self.search_tolerance:g} is above tolerance {self.tolerance:g}, and without "
                "tuning nothing wins that back; set tune.method=lora, or raise tolerance"
            )
        return self
