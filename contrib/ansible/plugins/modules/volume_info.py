#!/usr/bin/python
# SPDX-License-Identifier: MIT

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_info
short_description: List the volumes of a libvirt/KVM host
version_added: 0.1.0
description: Lists the volumes that libvirt-volume-provisioner made on a host and that still exist.
author: The libvirt-volume-provisioner developers (@libvirt-volume-provisioner)
extends_documentation_fragment: lvp.provisioner.connection
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
options:
  name:
    description: Only the volume of this name.
    type: str
  target:
    description: Only volumes of this target.
    type: str
"""

EXAMPLES = r"""
- name: Look for the volume
  lvp.provisioner.volume_info:
    name: web-01
  register: found

- name: Show where it is
  ansible.builtin.debug:
    msg: "{{ found.volumes | map(attribute='path') }}"
"""

RETURN = r"""
volumes:
  description: The volumes, as C(GET /api/v1/volumes) returns them.
  returned: success
  type: list
  elements: dict
error:
  description: Category of the error.
  returned: on failure
  type: str
status_code:
  description: HTTP status of the error response; 0 if there was none.
  returned: on failure
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.lvp.provisioner.plugins.module_utils.api import (
    CONNECTION_EXCLUSIVE,
    CONNECTION_NEEDS,
    Api,
    ApiError,
    connection_options,
)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(connection_options(), name={"type": "str"}, target={"type": "str"}),
        mutually_exclusive=CONNECTION_EXCLUSIVE,
        required_by=CONNECTION_NEEDS,
        supports_check_mode=True,
    )
    name, target = module.params["name"], module.params["target"]
    try:
        listed = list(Api(module.params).listed("volumes", "volumes"))
    except ApiError as error:
        module.fail_json(**error.as_result())
    found = [one for one in listed if name in (None, one["name"]) and target in (None, one["target"])]
    module.exit_json(changed=False, volumes=found)


if __name__ == "__main__":
    main()
