"""The tables that the warehouse loads: a contract each, and the table's own functions.

A new table is a contract in `contracts/` and one line in `load_tables`.
"""

from dataclasses import dataclass

from pipeline_assets.quality.contract import Contract, ContractError, MartContract
from pipeline_assets.quality.odcs import load_contract, load_mart
from pipeline_assets.quality.validation import Frames, unchanged
from pipeline_assets.warehouse import transactions


@dataclass(frozen=True)
class Table:
    """A table's pipeline: its contract, and how its rows are normalised and extended."""

    contract: Contract
    normalise: Frames = unchanged
    """Unifies harmless variants before the rules are tested; source columns in, the same columns out."""
    derive: Frames = unchanged
    """Adds the columns that the contract derives; source columns in, all columns out."""
    marts: tuple[MartContract, ...] = ()
    """Tables aggregated from this one, refreshed by its loads."""

    def __post_init__(self) -> None:
        """Raises ContractError for derived columns that nothing derives, and for a mart of another table or
        one grouped by an optional column."""
        lacking = [column.name for column in self.contract.columns if column.derived_from]
        if lacking and self.derive is unchanged:
            raise ContractError(
                f"{self.contract.name}: {', '.join(lacking)} must be derived; give the table a `derive`"
            )
        always = {column.name for column in self.contract.columns if column.required}
        for mart in self.marts:
            if mart.source_relation != self.contract.target_relation:
                raise ContractError(
                    f"{mart.name}: sourceRelation {mart.source_relation} isn't the table that it is "
                    f"brought up to date with, {self.contract.target_relation}"
                )
            if optional := [name for name in mart.key if name not in always]:
                raise ContractError(
                    f"{mart.name}: groups by {optional[0]}, which isn't a required column of "
                    f"{self.contract.name}: rows without it would be in no group"
                )


OWN_ASSETS = ("news_articles", "purchase_predictions")
"""Contracts of tables that an asset of their own loads, through the same gate, and no pipeline of a table."""


def every_table() -> list[Table]:
    """Every table of the warehouse with a contract, but for the marts, which belong to theirs."""
    return [*load_tables(), *(Table(load_contract(name)) for name in OWN_ASSETS)]


def load_tables() -> list[Table]:
    """Every table that has a pipeline."""
    return [
        Table(
            load_contract("transactions"),
            transactions.normalise,
            transactions.derive,
            marts=(load_mart("dim_customers"), load_mart("daily_sales")),
        ),
    ]
