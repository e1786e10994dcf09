"""What `transformers` loads for ``model.generate(..., custom_generate="ORG/NAME", trust_remote_code=True)``."""

from specdec.engine.custom import as_folder as generate

__all__ = ["generate"]
