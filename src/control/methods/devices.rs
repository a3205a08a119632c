//! `device.pair.*` and `device.token.*`.

use super::super::Control;
use super::super::answer::denied;
use super::params;
use crate::auth::scope::{Role, ScopeSet};
use crate::hub::Caller;
use crate::rpc::types::device::{
    DevicePairApproved, DevicePairDecideParams, DevicePairRejected, DevicePairRemoveParams,
    DevicePairRemoved, DevicePairRename, DeviceTokenRevokeParams, DeviceTokenRevoked,
    DeviceTokenRotateParams, DeviceTokenRotated, TokenDelivery,
};
use crate::rpc::{ErrorShape, Method, Request};

pub(super) fn approve(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DevicePairApproved, ErrorShape> {
    let DevicePairDecideParams { request_id } = params(Method::DevicePairApprove, request)?;
    let device = control
        .hub
        .approve_device(caller, &request_id)
        .map_err(denied)?;
    Ok(DevicePairApproved { request_id, device })
}

pub(super) fn reject(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DevicePairRejected, ErrorShape> {
    let DevicePairDecideParams { request_id } = params(Method::DevicePairReject, request)?;
    let device = control
        .hub
        .reject_device(caller, &request_id)
        .map_err(denied)?;
    Ok(DevicePairRejected {
        request_id,
        device_id: device.as_str().to_owned(),
    })
}

pub(super) fn remove(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DevicePairRemoved, ErrorShape> {
    let DevicePairRemoveParams { device_id } = params(Method::DevicePairRemove, request)?;
    let device = control
        .hub
        .remove_device(caller, &device_id)
        .map_err(denied)?;
    Ok(DevicePairRemoved {
        device_id: device.as_str().to_owned(),
    })
}

pub(super) fn rename(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DevicePairRename, ErrorShape> {
    let DevicePairRename { device_id, label } = params(Method::DevicePairRename, request)?;
    let device = control
        .hub
        .rename_device(caller, &device_id, &label)
        .map_err(denied)?;
    Ok(DevicePairRename {
        device_id,
        label: device.label.unwrap_or_default(),
    })
}

pub(super) fn rotate(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DeviceTokenRotated, ErrorShape> {
    let wanted: DeviceTokenRotateParams = params(Method::DeviceTokenRotate, request)?;
    let role = role(&wanted.role)?;
    let scopes = wanted.scopes.as_deref().map(ScopeSet::from_wire);
    let granted = control
        .hub
        .rotate_token(caller, &wanted.device_id, role, scopes)
        .map_err(denied)?;
    let delivery = if granted.token.is_some() {
        TokenDelivery::InBand
    } else {
        TokenDelivery::WithheldCrossDevice
    };
    Ok(DeviceTokenRotated {
        device_id: granted.device.as_str().to_owned(),
        role: granted.role.as_str().to_owned(),
        token: granted.token,
        scopes: granted
            .scopes
            .to_wire()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        rotated_at_ms: granted.rotated_at_ms,
        token_delivery: Some(delivery),
    })
}

pub(super) fn revoke(
    control: &Control,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<DeviceTokenRevoked, ErrorShape> {
    let wanted: DeviceTokenRevokeParams = params(Method::DeviceTokenRevoke, request)?;
    let role = role(&wanted.role)?;
    let (device, revoked_at_ms) = control
        .hub
        .revoke_token(caller, &wanted.device_id, role)
        .map_err(denied)?;
    Ok(DeviceTokenRevoked {
        device_id: device.as_str().to_owned(),
        role: role.as_str().to_owned(),
        revoked_at_ms,
    })
}

fn role(name: &str) -> Result<Role, ErrorShape> {
    Role::from_wire(name).ok_or_else(|| ErrorShape::invalid_request("invalid role"))
}
